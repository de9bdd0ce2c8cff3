"""What an adapted layer costs, measured against the frozen one: `pytest benchmarks/ --benchmark-only`.

cases.py      what is measured: shapes, forms, modes; a line of the results is one case
problems.py   the tensors of a case
baselines.py  the peers, from the released layer's einsum to PEFT
steps.py      a case and its tensors -> the call that is timed
models.py     a decoder layer and a whole Llama, adapted four ways
timing.py     how long a call takes, and what it allocates
contest.py    all calls that share a frozen layer, in the same rounds
record.py     what is stored of a case
report.py     stored results -> tables and pictures of docs/performance.md
"""
