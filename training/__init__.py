"""How the embedded models were made: data, training and evaluation. Not part of the package."""
