# A chat server as it is written everywhere. On a good day it works; docs/from-python.md says what goes wrong, and when.

import socket
import sys
import threading

clients = []
names = []


def broadcast(message):
    for client in clients:
        client.send(message)


def handle(client):
    while True:
        try:
            message = client.recv(1024)
            name = names[clients.index(client)]
            broadcast(f"{name}: ".encode() + message)
        except OSError:
            index = clients.index(client)
            clients.remove(client)
            name = names.pop(index)
            client.close()
            broadcast(f"{name} left.\n".encode())
            break


def accept_clients(server):
    while True:
        client, address = server.accept()
        print("connected:", address)
        client.send(b"Your name?\n")
        name = client.recv(1024).decode().strip()
        names.append(name)
        clients.append(client)
        client.send(f"Welcome, {name}.\n".encode())
        threading.Thread(target=handle, args=(client,)).start()


def main():
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 12345
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.bind(("127.0.0.1", port))
    server.listen()
    print("listening on port", server.getsockname()[1], flush=True)
    accept_clients(server)


main()
