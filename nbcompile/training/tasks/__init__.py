"""What is learnt: classification, detection; each says what is lost, what is measured, and which networks fit."""
