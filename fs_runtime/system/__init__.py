"""The machine under the runtime: files, GPUs, terminals, versions."""
