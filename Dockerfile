# The package with its service and its review page, for CPUs. docs/install.md shows how to run it.
#
#   docker build --tag=devnet_jax .

FROM python:3.11-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY devnet_jax devnet_jax
RUN pip wheel --no-cache-dir --no-deps --wheel-dir=/wheels .

FROM python:3.11-slim
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/*.whl)[serve,review]" && rm -r /wheels
COPY configs /configs
COPY examples /examples
# All that is written lies in /work: runs, prepared data, weights, compiled programs. With HOME set,
# that also holds for other users (docker run --user).
RUN useradd --uid=1000 --home-dir=/work --create-home devnet
ENV HOME=/work
USER devnet
WORKDIR /work
VOLUME /work
EXPOSE 8000
ENTRYPOINT ["devnet"]
CMD ["--help"]
