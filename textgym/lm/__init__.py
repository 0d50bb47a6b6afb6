"""Language models as policies and references: numpy in and out, torch only where a model needs it."""
