# Two images:
#   docker build -t glmtune .                       the CPU build of PyTorch
#   docker build -t glmtune:cuda --target cuda .    for NVIDIA GPUs; the host needs a driver only
# Packages from a mirror: --build-arg PIP_INDEX_URL=https://pypi.tuna.tsinghua.edu.cn/simple

# Triton compiles a small C file when it is first used, so this one has a compiler.
FROM python:3.12-bookworm AS cuda
ARG CUDA=cu130
ARG TORCH_INDEX=https://download.pytorch.org/whl
ARG PIP_INDEX_URL=https://pypi.org/simple
RUN pip install --no-cache-dir --index-url "${TORCH_INDEX}/${CUDA}" torch==2.13.0
WORKDIR /opt/glmtune
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir "glmtune[serve,qlora,gguf,lint,evaluate,modelscope] @ file:///opt/glmtune" \
    && useradd --create-home --uid 1000 glmtune \
    && install --directory --mode 1777 /cache /work
ENV GLMTUNE_CACHE=/cache/glmtune \
    HF_HOME=/cache/huggingface \
    PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /work
EXPOSE 8000
ENTRYPOINT ["glmtune"]
CMD ["--help"]

FROM python:3.12-slim-bookworm AS cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl
ARG PIP_INDEX_URL=https://pypi.org/simple
RUN pip install --no-cache-dir --index-url "${TORCH_INDEX}/cpu" torch==2.13.0
WORKDIR /opt/glmtune
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir "glmtune[serve,qlora,gguf,lint,evaluate,modelscope] @ file:///opt/glmtune" \
    && useradd --create-home --uid 1000 glmtune \
    && install --directory --mode 1777 /cache /work
ENV GLMTUNE_CACHE=/cache/glmtune \
    HF_HOME=/cache/huggingface \
    PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /work
EXPOSE 8000
ENTRYPOINT ["glmtune"]
CMD ["--help"]
