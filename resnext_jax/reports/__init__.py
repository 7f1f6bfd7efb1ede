"""Tables and figures made from the logs of runs, and the runs they need."""
