"""How several models become one: LM-Cocktail, fixed or searched weights, interpolated exactly."""
