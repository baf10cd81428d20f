"""What the papers propose: one file per method; files that begin with _ hold what several methods share."""
