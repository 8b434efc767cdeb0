# An image after FLARE's container contract, for GPU and CPU:
#   docker build -t flare-vlm .
#   docker run --shm-size=28gb -m 28G --gpus device=1 -v $PWD/inputs:/workspace/inputs -v $PWD/outputs:/workspace/outputs \
#       flare-vlm /bin/bash -c "sh predict.sh"
FROM python:3.11-slim
COPY . /opt/flare-vlm
RUN pip install --no-cache-dir -c /opt/flare-vlm/constraints.txt "/opt/flare-vlm[openvino]"
WORKDIR /workspace
RUN cp /opt/flare-vlm/predict.sh . && mkdir inputs outputs
# which ids the masks use (flare23 or flare24), and where the network converted for a CPU is kept
ENV LABELS=flare24 XDG_CACHE_HOME=/opt/cache
# converted once here, so that no run has to
RUN INPUTS=/opt/flare-vlm/examples/scans/Dataset102_SarcomaCT/imagesTr OUTPUTS=/tmp/masks sh predict.sh --device cpu \
    && chmod -R a+rX /opt/cache
CMD ["sh", "predict.sh"]
