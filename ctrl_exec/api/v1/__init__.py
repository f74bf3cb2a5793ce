"""The HTTP front end of the task layer: `/api/v1`, a module for each resource."""
