"""Language models behind one port; `base.py` is the port."""
