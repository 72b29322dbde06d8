"""Around every command: errors, durable files, worker processes, the command line."""
