"""Named drawings from ordinary packages. The modules fetch, render, compose and caption them.

They also keep the held-out drawings apart. `python -m training.data build` writes the folder that
`compose.TrainingSet` reads.
"""
