"""What ``python -m ilora_kernels.tune`` tries, in which passes, and how it takes the time."""
