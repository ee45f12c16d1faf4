"""Operations that a filter starts itself, for native filters (the .pxd); filter_file is the Python face."""
