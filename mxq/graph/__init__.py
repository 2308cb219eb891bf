"""What a network is: `ir` (nodes, graphs, models), what passes say of tensors (`annotation`), and both as text."""
