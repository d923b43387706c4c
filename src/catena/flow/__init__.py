"""Recipes, plans and runs: how stages become a chain that is checked, cached and resumed."""
