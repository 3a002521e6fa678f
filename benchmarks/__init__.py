"""Time, memory and accuracy of fastmmd beside what people use; ``python -m benchmarks`` runs it.

Everything compared is measured in one process, in interleaved rounds (:mod:`.interleave`), so that
what disturbs the machine disturbs both sides. pytest-benchmark records the rounds; every table and
picture is made from its file alone.
"""
