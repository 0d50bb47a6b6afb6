"""What the report and the microscope share: templates, escaping, the look, and folders that are never overwritten."""
