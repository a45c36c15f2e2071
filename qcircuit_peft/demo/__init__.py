"""The first five minutes: a task, a few methods, a table, and an adapter that ships."""
