"""One module for each verb of the command line, each with a `command`. Imports none of them."""
