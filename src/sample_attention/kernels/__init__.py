"""What selection and attention share below their formulas: devices, layouts, loads, workers."""
