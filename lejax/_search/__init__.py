"""Search for the minimum of a black box: the rule, without the loop around it."""
