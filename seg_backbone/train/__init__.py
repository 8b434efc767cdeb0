"""Training a segmentation model. `loop.train_segmentation` reads top to bottom; each other file is one of its parts.

config      what a training file may say
data        cases of the datasets, split, and the sources that draw from them
cache       preprocessed cases on disk
samples     where windows come from: sources, mixed into batches, drawn in the background
consistency a mean teacher: disturbed windows, and the term that compares
cutmix      a source of windows with lesions carried in from other scans
rounds      training again on what the model labelled
objective   what a batch costs: terms, each a function of one `Step`
model       the network, the extra heads that learn with it, and their running average
optimise    optimiser and learning rate
state       the checkpoint of a run
log         rows of the log
validation  Dice on whole scans
gate        a classifier of windows for a trained model; of the parts above, all but model, objective and validation
"""

from seg_backbone.train.config import SegmentationConfig
from seg_backbone.train.loop import train_segmentation

__all__ = ["SegmentationConfig", "train_segmentation"]
