"""What commands do before and after a run, which knows nothing of it: plan, advise, attack, predict, report."""
