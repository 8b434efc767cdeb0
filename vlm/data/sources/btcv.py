"""BTCV, "Multi-Atlas Labeling Beyond the Cranial Vault": 13 abdominal organs in 30 labelled CT scans.

Files: Training/img/imgNNNN.nii.gz, Training/label/labelNNNN.nii.gz, Testing/img. Every organ is annotated in every
labelled case.
Licence: the terms of Synapse syn3193805, on registration. Cite: Landman et al., MICCAI Multi-Atlas Labeling Beyond the
Cranial Vault, 2015, doi:10.7303/syn3193805.

    Training/img/img0007.nii.gz, Training/label/label0007.nii.gz -> imagesTr/0007_0000.nii.gz, labelsTr/0007.nii.gz
"""

from __future__ import annotations

from vlm.data.sources.scan_source import paired_source

LABELS = {
    "spleen": 1,
    "kidney_right": 2,
    "kidney_left": 3,
    "gallbladder": 4,
    "esophagus": 5,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
    "inferior_vena_cava": 9,
    "portal_and_splenic_veins": 10,
    "pancreas": 11,
    "adrenal_gland_right": 12,
    "adrenal_gland_left": 13,
}
SOURCE = paired_source("btcv", LABELS, "abdomen")
