"""One readable file a pipeline, composed from the parts of clipguide."""
