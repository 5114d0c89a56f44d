"""The papers' models: trunk and heads under the papers' names, one file each."""
