"""Several devices and processes that work as one."""
