"""What people see: progress, tables, and what went wrong."""
