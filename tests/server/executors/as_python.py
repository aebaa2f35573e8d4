"""`as_python.py PROGRAM MODULE -m MODULE ARGUMENTS…`: run the module as if PROGRAM were the interpreter."""

import runpy
import sys

_, sys.executable, module, _, _, *arguments = sys.argv
sys.argv = [module, *arguments]
runpy.run_module(module, run_name="__main__", alter_sys=False)
