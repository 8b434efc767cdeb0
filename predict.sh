#!/bin/sh
# FLARE's container contract: every scan CASE_0000.nii.gz of /workspace/inputs becomes /workspace/outputs/CASE.nii.gz,
# and nothing else is left there. Further options of `vlm segment` may follow, such as --max-gpu-mb 4000.
#   LABELS   flare24 (lesion = 1, the default) or flare23 (13 organs and lesion = 14)
#   INPUTS, OUTPUTS, PYTHON   other folders, another interpreter
set -u
outputs="${OUTPUTS:-/workspace/outputs}"
"${PYTHON:-python}" -m vlm.cli segment "${INPUTS:-/workspace/inputs}" -o "$outputs" \
    --fast --modality CT --labels "${LABELS:-flare24}" "$@"
code=$?
rm -f "$outputs/labels.json"
exit $code
