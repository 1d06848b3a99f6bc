"""Defines generations, batches, images, models, failures and deadlines. Imports no other package of this layer."""
