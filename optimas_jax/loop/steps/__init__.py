"""Steps of an iteration: propose values, try and label them, race them, test the best at the gate."""
