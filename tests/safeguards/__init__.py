"""What must stay as it is while code moves: programs, configs, sentences, numbers, old runs."""
