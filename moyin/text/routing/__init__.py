"""Which back end answers: ability, health, expected cost. Plain Python without a clock of its own."""
