"""Recipes: which techniques make a set of networks fast, one field each."""
