"""The kernel both sides share: values, errors, files, processes, HTTP, TLS; imports nothing of ours."""
