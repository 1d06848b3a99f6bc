"""What things are: generations, batches, images, models, failures, deadlines. Imports no other room."""
