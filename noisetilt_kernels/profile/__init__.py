"""Profile of the operators for the user's own shapes: `python -m noisetilt_kernels.profile SHAPE...`.

- `shapes`: shapes and names of presets
- `cases`, `parts`: calls of every operator, and the parts of `whiten`, on each backend
- `timing`, `counting`, `limits`: their times and counts, and what limits them
- `step`: time of a step of a model
- `report`: all of it for one shape, as a table and as JSON
"""
