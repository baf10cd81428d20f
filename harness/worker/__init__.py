"""One node's process on the wall clock: `python -m harness.worker`.

session     its life, as the controller leads it
job         what it is dealt
driver      the primitives below the unchanged Node
futures     what activities await; the rows of waits
processor   the one thread that computes; pacing
network     channels to peers
kept        states that wait to be scored
rows        what is recorded and not yet sent home
clock       the run's clock
rehearsal   warm-up, and the step that calibration times
"""
