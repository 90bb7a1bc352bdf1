"""The judge: compares two traces of one model run and says which operation of which side is wrong.

It sees arrays, names and callables only. It imports neither side of the comparison.
"""
