"""The machinery that every operator shares; nothing here knows a particular operator."""
