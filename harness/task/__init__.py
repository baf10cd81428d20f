"""What is learned: data, models, partitions, trainers.

data/       data sets in their original formats
models/     models as sequences of named composite blocks
partition   which client has which samples
config      the experiment's `task` and `training` sections
source      samples by index, real or as shapes
batch       mini-batches that are loaded inside compute
state       a module's parameters in one flat buffer
trainer     one block with its optimiser: all that touches weights
aggregate   weighted averages
scorer      the quality of a model made of blocks
task        what a method's role is given
"""
