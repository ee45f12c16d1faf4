"""The commands: stackfs (stackfs_main) and fltmc (fltmc_main), one module a verb.

A verb's module holds its arguments and help text and imports what it works with inside the function, so that listing,
completion and help start quickly. Shared: run (how a command ends), tables (what is shown and how it is escaped).
Which daemons a verb speaks to, load, unload, attach, detach and the listings are the library's (stackfs/filterlib).
What cannot be done is a StackfsError.
"""
