"""Operations on keys and values. Of those with several back ends, `ref.py` is plain XLA.

Such a function takes `implementation`: "xla"; "pallas", a kernel for NVIDIA GPUs where there is
one; "pallas_interpret", the same kernel on any device, slowly, for tests; or None, which takes the
first that can do what is asked, in the order of `dispatch.call`. One that cannot raises
NotImplementedError.
"""
