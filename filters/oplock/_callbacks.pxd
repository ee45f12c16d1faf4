# The filter's callbacks: nothing of them is cimported.
