"""The routines of the Filter Manager under their DDI names, one module a topic; stackfs.fltkernel gathers them."""
