# syntax=docker/dockerfile:1
# A CUDA image:   docker build --tag attunet3d .
# A CPU image:    docker build --tag attunet3d --build-arg TORCH_INDEX=URL .
#                 with the index of CPU builds that torch's installation page names
# Run it:         docker run --rm --read-only --tmpfs /tmp --gpus all --shm-size 2g \
#                   --user "$(id -u):$(id -g)" --volume "$PWD:/data" attunet3d infer MODEL scans out
ARG PYTHON=3.12
FROM python:${PYTHON}-slim
ARG TORCH_INDEX=""
ARG EXTRAS="dicom,mesh,serve,slicer"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 HOME=/tmp
WORKDIR /source
COPY constraints.txt ./
RUN grep '^torch==' constraints.txt > torch.txt \
    && pip install ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} --requirement torch.txt
COPY pyproject.toml README.md LICENSE ./
COPY attunet3d attunet3d
COPY pipelines pipelines
COPY data_manifests data_manifests
RUN pip install --constraint constraints.txt ".[${EXTRAS}]" && rm -rf attunet3d build
USER 10001:10001
WORKDIR /data
ENTRYPOINT ["attunet3d"]
CMD ["--help"]
