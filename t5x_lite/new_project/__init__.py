"""Projects of other people: a template, and the command that copies it."""
