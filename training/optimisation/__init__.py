"""How weights change: optimisers, groups, averages, a teacher."""
