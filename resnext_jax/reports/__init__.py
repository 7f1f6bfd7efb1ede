"""The paper's tables and figures from the logs of runs, and the sweeps that train them."""
